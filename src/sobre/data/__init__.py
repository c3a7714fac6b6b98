"""From files to rows: documents, held-out split, token shards, loaders; chats with their loss masks."""
