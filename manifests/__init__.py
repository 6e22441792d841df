"""What is annotated: one YAML manifest per dataset, its schema, and `manifests.readers` for the source formats."""
