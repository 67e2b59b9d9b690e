"""Scheduling: compute slots, a fair bounded queue, admission control and cost prediction."""
