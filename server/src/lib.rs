//! What is done: sockets, files, threads around the engine.
