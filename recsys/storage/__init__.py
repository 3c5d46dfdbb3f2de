"""Storage: files and folders written beside and renamed, arrays, tensors, parts as JSON, artifacts."""
