//! Each layer on a real axum server.
