"""Jobs, the queue before the compute slots, and admission."""
