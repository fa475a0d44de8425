"""What the batch service decides: values in, values out."""
