"""hftune: from raw text to a trained, measured, shareable language model."""

__version__ = "0.1.0"
