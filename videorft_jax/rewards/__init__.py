"""From strings and host arrays to rewards; no model but SigLIP, and that only in `semantic`."""
