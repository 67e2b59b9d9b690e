// Attention Service by gRPC: main SCENARIO HOST:PORT. Prints one line of JSON.
package main

import (
	"context"
	"encoding/binary"
	"encoding/json"
	"fmt"
	"io"
	"math"
	"os"
	"strconv"
	"time"

	"google.golang.org/genproto/googleapis/rpc/errdetails"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	pb "attention/v1"
)

// Calls that find the server away or full are repeated. Before version 1.40, grpc-go repeats with GRPC_GO_RETRY=on alone.
const serviceConfig = `{"methodConfig": [{
	"name": [{"service": "attention.v1.AttentionService"}],
	"retryPolicy": {"maxAttempts": 5, "initialBackoff": "0.1s", "maxBackoff": "2s", "backoffMultiplier": 2,
		"retryableStatusCodes": ["UNAVAILABLE"]}
}]}`

type report map[string]interface{}

func tensor(numbers []float32, shape ...int64) *pb.Tensor {
	data := make([]byte, 4*len(numbers))
	for i, each := range numbers {
		binary.LittleEndian.PutUint32(data[4*i:], math.Float32bits(each))
	}
	return &pb.Tensor{DataType: pb.DataType_DATA_TYPE_FP32, Shape: shape, Data: data}
}

func numbers(tensor *pb.Tensor) []float32 {
	numbers := make([]float32, len(tensor.Data)/4)
	for i := range numbers {
		numbers[i] = math.Float32frombits(binary.LittleEndian.Uint32(tensor.Data[4*i:]))
	}
	return numbers
}

func request(query *pb.Tensor, outputs ...string) *pb.AttendRequest {
	asked := &pb.AttendRequest{Model: "dot", Inputs: []*pb.Sequence{{Query: query}}}
	for _, name := range outputs {
		asked.Outputs = append(asked.Outputs, &pb.OutputSpec{Name: name})
	}
	return asked
}

func output(answer *pb.AttendResponse, place int) *pb.Tensor {
	return answer.Results[0].Outputs[place].GetTensor()
}

// What a failed call tells: the code, and the field at fault from the details of its status.
func failure(err error) report {
	told := status.Convert(err)
	field := ""
	for _, detail := range told.Details() {
		if bad, ok := detail.(*errdetails.BadRequest); ok {
			field = bad.FieldViolations[0].Field
		}
	}
	names := map[codes.Code]string{
		codes.Canceled:         "CANCELLED",
		codes.DeadlineExceeded: "DEADLINE_EXCEEDED",
		codes.InvalidArgument:  "INVALID_ARGUMENT",
	}
	return report{"code": names[told.Code()], "field": field, "message": told.Message()}
}

func unary(ctx context.Context, client pb.AttentionServiceClient) (report, error) {
	query := tensor([]float32{1, 0, 0, 1, 1, 1}, 3, 2)
	answer, err := client.Attend(ctx, request(query, "output", "weights"))
	if err != nil {
		return nil, err
	}
	return report{"output": numbers(output(answer, 0)), "shape": output(answer, 1).Shape}, nil
}

func stream(ctx context.Context, client pb.AttentionServiceClient) (report, error) {
	call, err := client.AttendStream(ctx)
	if err != nil {
		return nil, err
	}
	go func() {
		for id := 0; id < 100; id++ {
			query := tensor([]float32{float32(id), 1, 0, 1}, 2, 2)
			if call.Send(&pb.AttendStreamRequest{Id: strconv.Itoa(id), Request: request(query, "output")}) != nil {
				return // Recv has the error
			}
		}
		call.CloseSend()
	}()
	answers := [][2]float64{}
	for {
		answer, err := call.Recv()
		if err == io.EOF {
			return report{"answers": answers}, nil
		}
		if err != nil {
			return nil, err
		}
		id, _ := strconv.Atoi(answer.Id)
		answers = append(answers, [2]float64{float64(id), float64(numbers(output(answer.GetResponse(), 0))[0])})
	}
}

func large(ctx context.Context, client pb.AttentionServiceClient) (report, error) {
	ones := make([]float32, 30<<18)
	for i := range ones {
		ones[i] = 1
	}
	answer, err := client.Attend(ctx, request(tensor(ones, 2, int64(len(ones)/2)), "output"))
	if err != nil {
		return nil, err
	}
	sum := 0.0
	for _, each := range numbers(output(answer, 0)) {
		sum += float64(each)
	}
	return report{"numbers": len(numbers(output(answer, 0))), "sum": sum}, nil
}

func one(ctx context.Context, client pb.AttentionServiceClient, shape ...int64) (report, error) {
	_, err := client.Attend(ctx, request(tensor([]float32{1, 0}, shape...), "output"))
	return report{}, err
}

func run(scenario string, client pb.AttentionServiceClient) (report, error) {
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	switch scenario {
	case "stream":
		return stream(ctx, client)
	case "large":
		return large(ctx, client)
	case "deadline":
		soon, stop := context.WithTimeout(ctx, time.Second)
		defer stop()
		return one(soon, client, 1, 2)
	case "cancel":
		go func() {
			io.Copy(io.Discard, os.Stdin) // until the input ends
			cancel()
		}()
		return one(ctx, client, 1, 2)
	case "errors":
		return one(ctx, client, 2)
	}
	return unary(ctx, client)
}

func main() {
	connection, err := grpc.Dial(
		os.Args[2],
		grpc.WithInsecure(),
		grpc.WithDefaultServiceConfig(serviceConfig),
		grpc.WithDefaultCallOptions(grpc.MaxCallRecvMsgSize(math.MaxInt32)),
	)
	if err != nil {
		panic(err)
	}
	defer connection.Close()
	told, err := run(os.Args[1], pb.NewAttentionServiceClient(connection))
	if err != nil {
		told = failure(err)
	}
	line, _ := json.Marshal(told)
	fmt.Println(string(line))
}
