"""Where two index folders of colbert-ai part, and what that explains; knows the files, not the library."""
