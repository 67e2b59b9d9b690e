"""Authentication: tokens, TLS certificates, Host headers, and the files with tokens and certificates."""
