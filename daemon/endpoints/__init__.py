"""The listening ports: sockets, pages, uploads, Wyoming."""
