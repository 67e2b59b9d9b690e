"""gRPC: the services of attention.v1, health and reflection on one port."""
