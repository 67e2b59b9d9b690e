"""gRPC: the services of attention.v1 and of the Open Inference Protocol, health and reflection on one port.

Interceptor and services are written against `call.GrpcCall`. `native` carries them over the package `http2`.
"""
