"""Versioned prompts and rule sets: one YAML file each, and the loader."""
