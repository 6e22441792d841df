"""Shipped profiles, one YAML each."""
