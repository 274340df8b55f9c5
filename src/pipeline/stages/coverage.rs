//! (arrives with the data room)
