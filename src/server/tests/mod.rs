//! Real HTTP over loopback and a real socket; the rows are real too, only the queue behind them is not there.

mod fixture;
mod limits;
mod local;
mod webhook;
