//! Tests against a server of a few lines: each connection is answered by a script that sees the request's head.
