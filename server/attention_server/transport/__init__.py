"""Parts that both ports share: sockets, threads for long work, futures on an event loop, and inflation."""
