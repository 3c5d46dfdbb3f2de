"""What is kept on disk: files and folders written beside and renamed, arrays, tensors, one error where they break."""
