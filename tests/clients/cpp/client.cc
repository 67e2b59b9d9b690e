// Attention Service by gRPC: client SCENARIO HOST:PORT. Prints one line of JSON.
#include <grpcpp/grpcpp.h>

#include <chrono>
#include <cstring>
#include <iostream>
#include <memory>
#include <numeric>
#include <sstream>
#include <string>
#include <thread>
#include <vector>

#include "attention/v1/attention.grpc.pb.h"
#include "google/rpc/error_details.pb.h"
#include "google/rpc/status.pb.h"

using attention::v1::AttendRequest;
using attention::v1::AttendResponse;
using attention::v1::AttendStreamRequest;
using attention::v1::AttendStreamResponse;
using attention::v1::AttentionService;
using attention::v1::Tensor;
using std::chrono::seconds;
using std::chrono::system_clock;

// Calls that find the server away or full are repeated.
const char kServiceConfig[] = R"({"methodConfig": [{
  "name": [{"service": "attention.v1.AttentionService"}],
  "retryPolicy": {"maxAttempts": 5, "initialBackoff": "0.1s", "maxBackoff": "2s", "backoffMultiplier": 2,
    "retryableStatusCodes": ["UNAVAILABLE"]}
}]})";

std::shared_ptr<grpc::Channel> Connect(const std::string& target) {
  grpc::ChannelArguments arguments;
  arguments.SetServiceConfigJSON(kServiceConfig);
  arguments.SetMaxReceiveMessageSize(-1);
  return grpc::CreateCustomChannel(target, grpc::InsecureChannelCredentials(), arguments);
}

// The bytes are little-endian, as those of this machine.
void Write(const std::vector<float>& numbers, const std::vector<int64_t>& shape, Tensor* tensor) {
  tensor->set_data_type(attention::v1::DATA_TYPE_FP32);
  tensor->mutable_shape()->Assign(shape.begin(), shape.end());
  tensor->set_data(numbers.data(), numbers.size() * sizeof(float));
}

std::vector<float> Numbers(const Tensor& tensor) {
  std::vector<float> numbers(tensor.data().size() / sizeof(float));
  std::memcpy(numbers.data(), tensor.data().data(), tensor.data().size());
  return numbers;
}

AttendRequest Request(const std::vector<float>& numbers, const std::vector<int64_t>& shape,
                      const std::vector<std::string>& outputs = {"output"}) {
  AttendRequest request;
  request.set_model("dot");
  Write(numbers, shape, request.add_inputs()->mutable_query());
  for (const auto& name : outputs) request.add_outputs()->set_name(name);
  return request;
}

const Tensor& Output(const AttendResponse& response, int place) {
  return response.results(0).outputs(place).tensor();
}

template <typename Values>
std::string List(const Values& values) {
  std::ostringstream text;
  text.precision(9);
  for (const auto& each : values) text << (text.tellp() ? ", " : "[") << each;
  return text.str() + "]";
}

// What a failed call tells: the code, and the field at fault from the details of its status.
std::string Failure(const grpc::Status& status) {
  google::rpc::Status details;
  google::rpc::BadRequest bad;
  std::string field;
  details.ParseFromString(status.error_details());
  for (const auto& each : details.details())
    if (each.UnpackTo(&bad)) field = bad.field_violations(0).field();
  std::string code = std::to_string(status.error_code());
  if (status.error_code() == grpc::StatusCode::CANCELLED) code = "CANCELLED";
  if (status.error_code() == grpc::StatusCode::DEADLINE_EXCEEDED) code = "DEADLINE_EXCEEDED";
  if (status.error_code() == grpc::StatusCode::INVALID_ARGUMENT) code = "INVALID_ARGUMENT";
  std::string message = status.error_message();
  for (auto& each : message)
    if (each == '"') each = '\'';
  return "{\"code\": \"" + code + "\", \"field\": \"" + field + "\", \"message\": \"" + message + "\"}";
}

std::string Unary(AttentionService::Stub& service, grpc::ClientContext& context) {
  AttendResponse response;
  auto request = Request({1, 0, 0, 1, 1, 1}, {3, 2}, {"output", "weights"});
  auto status = service.Attend(&context, request, &response);
  if (!status.ok()) return Failure(status);
  return "{\"output\": " + List(Numbers(Output(response, 0))) + ", \"shape\": " + List(Output(response, 1).shape()) +
         "}";
}

std::string Stream(AttentionService::Stub& service, grpc::ClientContext& context) {
  auto call = service.AttendStream(&context);
  std::thread writer([&call] {
    for (int id = 0; id < 100; ++id) {
      AttendStreamRequest message;
      message.set_id(std::to_string(id));
      *message.mutable_request() = Request({static_cast<float>(id), 1, 0, 1}, {2, 2});
      if (!call->Write(message)) return;
    }
    call->WritesDone();
  });
  std::vector<std::string> answers;
  AttendStreamResponse answer;
  while (call->Read(&answer)) {
    float first = Numbers(Output(answer.response(), 0))[0];
    answers.push_back("[" + answer.id() + ", " + std::to_string(first) + "]");
  }
  writer.join();
  auto status = call->Finish();
  return status.ok() ? "{\"answers\": " + List(answers) + "}" : Failure(status);
}

std::string Large(AttentionService::Stub& service, grpc::ClientContext& context) {
  std::vector<float> ones(30 << 18, 1);
  AttendResponse response;
  auto request = Request(ones, {2, static_cast<int64_t>(ones.size() / 2)});
  auto status = service.Attend(&context, request, &response);
  if (!status.ok()) return Failure(status);
  auto output = Numbers(Output(response, 0));
  double sum = std::accumulate(output.begin(), output.end(), 0.0);
  return "{\"numbers\": " + std::to_string(output.size()) + ", \"sum\": " + std::to_string(sum) + "}";
}

std::string One(AttentionService::Stub& service, grpc::ClientContext& context, const std::vector<int64_t>& shape) {
  AttendResponse response;
  auto status = service.Attend(&context, Request({1, 0}, shape), &response);
  return status.ok() ? "{}" : Failure(status);
}

int main(int, char** arguments) {
  std::string scenario = arguments[1];
  auto service = AttentionService::NewStub(Connect(arguments[2]));
  grpc::ClientContext context;
  context.set_deadline(system_clock::now() + seconds(scenario == "deadline" ? 1 : 60));
  std::string report;
  if (scenario == "stream") {
    report = Stream(*service, context);
  } else if (scenario == "large") {
    report = Large(*service, context);
  } else if (scenario == "cancel") {
    std::thread canceller([&context] {
      while (std::cin.get() != EOF) {
      }
      context.TryCancel();
    });
    report = One(*service, context, {1, 2});
    canceller.join();
  } else if (scenario == "deadline") {
    report = One(*service, context, {1, 2});
  } else if (scenario == "errors") {
    report = One(*service, context, {2});
  } else {
    report = Unary(*service, context);
  }
  std::cout << report << std::endl;
}
