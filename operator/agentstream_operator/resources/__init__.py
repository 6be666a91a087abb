"""The custom resources as models, their conditions and reasons, and what is generated from them."""
