"""A guestbook: people leave a name and a message, PostgreSQL keeps them."""
