"""What a job is and where it lives on disk; nothing heavy is imported here."""
