//! The same against PostgreSQL and MariaDB in containers.
