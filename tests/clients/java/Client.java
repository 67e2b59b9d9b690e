// Attention Service by gRPC: java Client SCENARIO HOST:PORT. Prints one line of JSON.
import attention.v1.Attention.AttendRequest;
import attention.v1.Attention.AttendResponse;
import attention.v1.Attention.AttendStreamRequest;
import attention.v1.Attention.AttendStreamResponse;
import attention.v1.Attention.DataType;
import attention.v1.Attention.OutputSpec;
import attention.v1.Attention.Sequence;
import attention.v1.Attention.Tensor;
import attention.v1.AttentionServiceGrpc;
import com.google.common.util.concurrent.ListenableFuture;
import com.google.protobuf.Any;
import com.google.protobuf.ByteString;
import com.google.protobuf.InvalidProtocolBufferException;
import com.google.rpc.BadRequest;
import com.google.rpc.Status;
import io.grpc.ManagedChannel;
import io.grpc.ManagedChannelBuilder;
import io.grpc.StatusRuntimeException;
import io.grpc.protobuf.StatusProto;
import io.grpc.stub.StreamObserver;
import java.nio.ByteBuffer;
import java.nio.ByteOrder;
import java.nio.FloatBuffer;
import java.util.ArrayList;
import java.util.Arrays;
import java.util.List;
import java.util.Map;
import java.util.concurrent.CompletableFuture;
import java.util.concurrent.TimeUnit;

public class Client {
  // Calls that find the server away or full are repeated.
  static final Map<String, ?> SERVICE_CONFIG =
      Map.of(
          "methodConfig",
          List.of(
              Map.of(
                  "name", List.of(Map.of("service", "attention.v1.AttentionService")),
                  "retryPolicy",
                      Map.of(
                          "maxAttempts", 5.0,
                          "initialBackoff", "0.1s",
                          "maxBackoff", "2s",
                          "backoffMultiplier", 2.0,
                          "retryableStatusCodes", List.of("UNAVAILABLE")))));

  static ManagedChannel channel(String target) {
    return ManagedChannelBuilder.forTarget(target)
        .usePlaintext()
        .defaultServiceConfig(SERVICE_CONFIG)
        .enableRetry()
        .maxInboundMessageSize(Integer.MAX_VALUE)
        .build();
  }

  static Tensor tensor(float[] numbers, long... shape) {
    ByteBuffer bytes = ByteBuffer.allocate(4 * numbers.length).order(ByteOrder.LITTLE_ENDIAN);
    bytes.asFloatBuffer().put(numbers);
    Tensor.Builder tensor = Tensor.newBuilder().setDataType(DataType.DATA_TYPE_FP32);
    for (long each : shape) tensor.addShape(each);
    return tensor.setData(ByteString.copyFrom(bytes)).build();
  }

  static float[] numbers(Tensor tensor) {
    FloatBuffer floats =
        tensor.getData().asReadOnlyByteBuffer().order(ByteOrder.LITTLE_ENDIAN).asFloatBuffer();
    float[] numbers = new float[floats.remaining()];
    floats.get(numbers);
    return numbers;
  }

  static AttendRequest request(Tensor query, String... outputs) {
    AttendRequest.Builder request = AttendRequest.newBuilder().setModel("dot");
    request.addInputs(Sequence.newBuilder().setQuery(query));
    for (String name : outputs) request.addOutputs(OutputSpec.newBuilder().setName(name));
    return request.build();
  }

  static Tensor output(AttendResponse response, int place) {
    return response.getResults(0).getOutputs(place).getTensor();
  }

  /** What a failed call tells: the code, and the field at fault from the details of its status. */
  static String failure(Throwable error) throws InvalidProtocolBufferException {
    String field = "";
    Status status = StatusProto.fromThrowable(error);
    for (Any detail : status.getDetailsList())
      if (detail.is(BadRequest.class))
        field = detail.unpack(BadRequest.class).getFieldViolations(0).getField();
    String code = io.grpc.Status.fromThrowable(error).getCode().name();
    String words = status.getMessage().replace("\"", "'");
    return String.format("{\"code\": \"%s\", \"field\": \"%s\", \"message\": \"%s\"}", code, field, words);
  }

  static String unary(AttentionServiceGrpc.AttentionServiceBlockingStub service) {
    AttendRequest request = request(tensor(new float[] {1, 0, 0, 1, 1, 1}, 3, 2), "output", "weights");
    AttendResponse response = service.withDeadlineAfter(60, TimeUnit.SECONDS).attend(request);
    String output = Arrays.toString(numbers(output(response, 0)));
    return String.format("{\"output\": %s, \"shape\": %s}", output, output(response, 1).getShapeList());
  }

  static String stream(AttentionServiceGrpc.AttentionServiceStub service) throws Exception {
    CompletableFuture<String> ended = new CompletableFuture<>();
    StreamObserver<AttendStreamRequest> requests =
        service.attendStream(
            new StreamObserver<AttendStreamResponse>() {
              private final List<String> answers = new ArrayList<>();

              @Override
              public void onNext(AttendStreamResponse answer) {
                answers.add("[" + answer.getId() + ", " + numbers(output(answer.getResponse(), 0))[0] + "]");
              }

              @Override
              public void onError(Throwable error) {
                ended.completeExceptionally(error);
              }

              @Override
              public void onCompleted() {
                ended.complete("{\"answers\": " + answers + "}");
              }
            });
    for (int id = 0; id < 100; id++) {
      AttendRequest request = request(tensor(new float[] {id, 1, 0, 1}, 2, 2), "output");
      requests.onNext(AttendStreamRequest.newBuilder().setId("" + id).setRequest(request).build());
    }
    requests.onCompleted();
    return ended.get();
  }

  static String large(AttentionServiceGrpc.AttentionServiceBlockingStub service) {
    float[] ones = new float[30 << 18];
    Arrays.fill(ones, 1);
    AttendRequest request = request(tensor(ones, 2, ones.length / 2), "output");
    float[] output = numbers(output(service.withDeadlineAfter(60, TimeUnit.SECONDS).attend(request), 0));
    double sum = 0;
    for (float each : output) sum += each;
    return String.format("{\"numbers\": %d, \"sum\": %.1f}", output.length, sum);
  }

  static String cancel(AttentionServiceGrpc.AttentionServiceFutureStub service) throws Exception {
    AttendRequest request = request(tensor(new float[] {1, 0}, 1, 2), "output");
    ListenableFuture<AttendResponse> answer = service.attend(request);
    while (System.in.read() >= 0) {} // until the input ends
    answer.cancel(true);
    return answer.isCancelled() ? "{\"code\": \"CANCELLED\"}" : "{}";
  }

  static String run(String scenario, ManagedChannel channel) throws Exception {
    AttentionServiceGrpc.AttentionServiceBlockingStub blocking = AttentionServiceGrpc.newBlockingStub(channel);
    try {
      switch (scenario) {
        case "stream":
          return stream(AttentionServiceGrpc.newStub(channel));
        case "large":
          return large(blocking);
        case "deadline":
          AttendRequest request = request(tensor(new float[] {1, 0}, 1, 2), "output");
          return output(blocking.withDeadlineAfter(1, TimeUnit.SECONDS).attend(request), 0).toString();
        case "cancel":
          return cancel(AttentionServiceGrpc.newFutureStub(channel));
        case "errors":
          return blocking.attend(request(tensor(new float[] {1, 0}, 2), "output")).toString();
        default:
          return unary(blocking);
      }
    } catch (StatusRuntimeException error) {
      return failure(error);
    }
  }

  public static void main(String[] arguments) throws Exception {
    ManagedChannel channel = channel(arguments[1]);
    System.out.println(run(arguments[0], channel));
    channel.shutdownNow().awaitTermination(5, TimeUnit.SECONDS);
  }
}
