//! End-to-end tests of towline.
