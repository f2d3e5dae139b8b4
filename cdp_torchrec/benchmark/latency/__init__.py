"""What denoising adds to a request."""
