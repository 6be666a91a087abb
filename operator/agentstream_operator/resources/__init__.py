"""The custom resources as models, their conditions and reasons, and the generated files."""
