#!/usr/bin/env bash
# Installs what Debian has of gRPC for Go, Java and C++, and builds the programs here: toolchains.sh DIR FOLDER..., where the
# folders have the .proto files. DIR/go/main, DIR/java (a class path, in DIR/java/classpath) and DIR/cpp/client are made.
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
packages=(
  protobuf-compiler golang-go golang-google-grpc-dev golang-github-golang-protobuf-1-5-dev protoc-gen-go-1-5 protoc-gen-go-grpc
  g++ libgrpc++-dev libprotobuf-dev protobuf-compiler-grpc default-jdk-headless libgrpc-java libprotobuf-java libperfmark-java
  libnetty-java libgoogle-gson-java protobuf-compiler-grpc-java-plugin libgoogle-common-protos-java
)
if ! dpkg-query --show "${packages[@]}" >/dev/null 2>&1; then
  sudo=; [ "$(id -u)" = 0 ] || sudo=sudo
  $sudo apt-get update -qq
  $sudo env DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends "${packages[@]}" >/dev/null
fi
out=$1
shift
includes=("${@/#/--proto_path=}")
contract=attention/v1/attention.proto
mkdir -p "$out/go/src/client" "$out/java" "$out/cpp"

names=Mattention/v1/attention.proto=attention/v1,Mgoogle/rpc/status.proto=google.golang.org/genproto/googleapis/rpc/status
protoc "${includes[@]}" --go_out="$names:$out/go/src" --go-grpc_out="$names:$out/go/src" $contract
cp "$here/go/main.go" "$out/go/src/client/"
(cd "$out/go/src/client" && GO111MODULE=off GOFLAGS=-p=1 GOPATH="$out/go:/usr/share/gocode" go build -o "$out/go/main")

protoc "${includes[@]}" --java_out="$out/java" --grpc-java_out="$out/java" \
  --plugin=protoc-gen-grpc-java="$(command -v grpc_java_plugin)" $contract
jars=()
for name in grpc-{api,context,core,netty,protobuf,protobuf-lite,stub} protobuf proto-google-common-protos guava failureaccess \
  perfmark-api gson netty-{buffer,codec,codec-http,codec-http2,common,handler,resolver,transport} netty-all \
  geronimo-annotation-1.3-spec; do
  [ ! -e "/usr/share/java/$name.jar" ] || jars+=("/usr/share/java/$name.jar")
done
classpath=$(IFS=:; echo "$out/java/classes:${jars[*]}")
javac -nowarn -cp "$classpath" -d "$out/java/classes" "$out"/java/attention/v1/*.java "$here"/java/*.java
echo "$classpath" >"$out/java/classpath"

protoc "${includes[@]}" --cpp_out="$out/cpp" --grpc_out="$out/cpp" \
  --plugin=protoc-gen-grpc="$(command -v grpc_cpp_plugin)" $contract google/rpc/status.proto google/rpc/error_details.proto
g++ -std=c++17 -O0 -I"$out/cpp" "$here/cpp/client.cc" "$out"/cpp/attention/v1/*.cc "$out"/cpp/google/rpc/{status,error_details}.pb.cc \
  -lgrpc++ -lgrpc -lgpr -lprotobuf -labsl_synchronization -o "$out/cpp/client"
