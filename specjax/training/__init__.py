"""Training: one generic loop, resumable bit for bit, and one file per thing that is trained."""
