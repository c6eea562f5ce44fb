"""What people type: run, check, transcribe, models, install-service."""
