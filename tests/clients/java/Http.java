// Attention Service by the HTTP client of the JDK with its defaults: java Http.java SCENARIO HOST:PORT. It offers HTTP/2 with
// its first request; the server answers by HTTP/1.1.
import java.net.URI;
import java.net.http.HttpClient;
import java.net.http.HttpRequest;
import java.net.http.HttpResponse;
import java.time.Duration;
import java.util.Map;
import java.util.concurrent.CompletableFuture;

public class Http {
  static final Map<String, String> BODIES =
      Map.of(
          "unary", "{\"query\": [[1, 0], [0, 1], [1, 1]], \"outputs\": [\"output\", \"weights\"]}",
          "errors", "{\"query\": [1, 0]}",
          "cancel", "{\"query\": [[1, 0]]}");

  public static void main(String[] arguments) throws Exception {
    String scenario = arguments[0];
    URI uri = URI.create("http://" + arguments[1] + "/v1/models/dot:attend");
    HttpClient client = HttpClient.newHttpClient();
    int calls = scenario.equals("stream") ? 100 : 1;
    for (int id = 0; id < calls; id++) {
      String body = BODIES.getOrDefault(scenario, "{\"query\": [[" + id + ", 1], [0, 1]]}");
      HttpRequest.Builder request = HttpRequest.newBuilder(uri).POST(HttpRequest.BodyPublishers.ofString(body));
      request.header("content-type", "application/json").timeout(Duration.ofMinutes(1));
      if (scenario.equals("deadline")) request.header("x-request-timeout", "1");
      CompletableFuture<HttpResponse<String>> answer =
          client.sendAsync(request.build(), HttpResponse.BodyHandlers.ofString());
      if (scenario.equals("cancel")) {
        while (System.in.read() >= 0) {} // until the input ends
        answer.cancel(true);
        System.out.println("{\"code\": \"CANCELLED\"}");
        Runtime.getRuntime().halt(0); // the connection ends with the process
      }
      System.out.println(answer.get().body());
    }
  }
}
