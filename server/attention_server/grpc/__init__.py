"""gRPC: the services of attention.v1 and of the Open Inference Protocol, health and reflection on one port.

Interceptor and services are written against `call.GrpcCall`, which `native` implements by the package `http2`, and
`grpcio` by gRPC's own server.
"""
