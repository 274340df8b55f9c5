//! Against real servers, each in a container of its own, through the real engine.
