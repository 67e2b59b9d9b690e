"""The service: attention, its weights and every stage between, over gRPC and REST. No torch."""
