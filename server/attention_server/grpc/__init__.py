"""gRPC: the services of attention.v1 and of the Open Inference Protocol, health and reflection on one port."""
