//! Reading a request's body whole, with three bounds: its size, its time, and what all bodies together may hold.
//!
//! The size is counted as it comes, so that a chunked body without end stops at the limit like one with a length. Small
//! bodies are bounded by the number of connections; what goes beyond [`FREE`] is taken out of a common budget, so that a thousand
//! strangers who each send just under the limit are told to come back later and do not use up the memory.

use std::{sync::Arc, time::Duration};

use bytes::{Buf, Bytes, BytesMut};
use futures_util::{Stream, StreamExt};
use tokio::{
    pin,
    sync::{OwnedSemaphorePermit, Semaphore},
    time::timeout,
};

/// The part of a body that is not counted against the budget.
const FREE: usize = 64 * 1024;

/// The budget's unit: a semaphore's count is too small for bytes on 32-bit machines.
const PAGE: usize = 4096;

/// Why there is no body.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum BodyError {
    TooLarge,
    TooSlow,
    /// Too many large bodies at once.
    Crowded,
    /// The peer broke off, or its chunks are malformed.
    Broken,
}

/// Reads bodies within common bounds. Cheap to clone.
#[derive(Debug, Clone)]
pub(super) struct Reader {
    limit: usize,
    time: Duration,
    budget: Arc<Semaphore>,
}

/// A body; what it takes of the budget is given back when it is dropped.
#[derive(Debug)]
pub(super) struct Body {
    pub bytes: Bytes,
    _share: Option<OwnedSemaphorePermit>,
}

impl Reader {
    /// `limit`: bytes a body. All large bodies together may hold four times that, but at least a mebibyte.
    pub(super) fn new(limit: u64, time: Duration) -> Self {
        let limit = usize::try_from(limit).unwrap_or(usize::MAX / 8);
        let pages = (limit.saturating_mul(4).max(1024 * 1024) / PAGE).min(Semaphore::MAX_PERMITS);
        Self { limit, time, budget: Arc::new(Semaphore::new(pages)) }
    }

    pub(super) fn limit(&self) -> usize {
        self.limit
    }

    /// `declared`: the request's `Content-Length`.
    pub(super) async fn read<B: Buf, E>(
        &self,
        declared: Option<u64>,
        body: impl Stream<Item = Result<B, E>>,
    ) -> Result<Body, BodyError> {
        let declared = declared.map(|n| usize::try_from(n).unwrap_or(usize::MAX));
        if declared.is_some_and(|n| n > self.limit) {
            return Err(BodyError::TooLarge);
        }
        timeout(self.time, self.collect(declared, body)).await.unwrap_or(Err(BodyError::TooSlow))
    }

    async fn collect<B: Buf, E>(
        &self,
        declared: Option<usize>,
        body: impl Stream<Item = Result<B, E>>,
    ) -> Result<Body, BodyError> {
        pin!(body);
        // Most bodies come in one piece, which is then not copied.
        let first = self.chunk(body.next().await, 0)?.unwrap_or_default();
        let Some(second) = self.chunk(body.next().await, first.len())? else {
            return Ok(Body { bytes: first, _share: None });
        };
        let mut share = None;
        // What a peer declares is believed only as far as it costs nothing; after that, as far as it was sent.
        let capacity = declared.unwrap_or(0).min(FREE).max(first.len() + second.len());
        let mut whole = BytesMut::with_capacity(capacity);
        whole.extend_from_slice(&first);
        whole.extend_from_slice(&second);
        drop((first, second));
        while let Some(chunk) = self.chunk(body.next().await, whole.len())? {
            self.claim(&mut share, whole.len() + chunk.len())?;
            whole.extend_from_slice(&chunk);
        }
        Ok(Body { bytes: whole.freeze(), _share: share })
    }

    /// The next piece, if it still fits.
    fn chunk<B: Buf, E>(&self, next: Option<Result<B, E>>, so_far: usize) -> Result<Option<Bytes>, BodyError> {
        let Some(next) = next else { return Ok(None) };
        let mut next = next.map_err(|_| BodyError::Broken)?;
        let len = next.remaining();
        if so_far + len > self.limit {
            return Err(BodyError::TooLarge);
        }
        Ok(Some(next.copy_to_bytes(len)))
    }

    /// Makes sure that the budget covers a body of `len` bytes.
    fn claim(&self, share: &mut Option<OwnedSemaphorePermit>, len: usize) -> Result<(), BodyError> {
        let pages = len.saturating_sub(FREE).div_ceil(PAGE);
        let missing = pages.saturating_sub(share.as_ref().map_or(0, OwnedSemaphorePermit::num_permits));
        if missing == 0 {
            return Ok(());
        }
        let missing = u32::try_from(missing).map_err(|_| BodyError::Crowded)?;
        let more = self.budget.clone().try_acquire_many_owned(missing).map_err(|_| BodyError::Crowded)?;
        match share {
            Some(share) => share.merge(more),
            None => *share = Some(more),
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use std::convert::Infallible;

    use futures_util::stream;

    use super::*;

    fn pieces(sizes: &[usize]) -> impl Stream<Item = Result<Bytes, Infallible>> {
        let pieces: Vec<_> = sizes.iter().map(|n| Ok(Bytes::from(vec![b'x'; *n]))).collect();
        stream::iter(pieces)
    }

    #[tokio::test]
    async fn bodies_are_whole_or_refused_at_the_limit() {
        let reader = Reader::new(100, Duration::from_secs(60));
        for sizes in [&[][..], &[100], &[50, 50], &[1, 2, 3, 94], &[0, 0, 7]] {
            let body = reader.read(None, pieces(sizes)).await.unwrap();
            assert_eq!(body.bytes.len(), sizes.iter().sum::<usize>(), "{sizes:?}");
        }
        for sizes in [&[101][..], &[50, 51], &[99, 1, 1]] {
            assert_eq!(reader.read(None, pieces(sizes)).await.unwrap_err(), BodyError::TooLarge, "{sizes:?}");
        }
        assert_eq!(reader.read(Some(101), pieces(&[])).await.unwrap_err(), BodyError::TooLarge);
    }

    #[tokio::test]
    async fn large_bodies_share_a_budget_and_give_it_back() {
        let reader = Reader::new(512 * 1024, Duration::from_secs(60));
        let sizes = [128 * 1024; 4];
        let mut held = Vec::new();
        let refused = loop {
            match reader.read(None, pieces(&sizes)).await {
                Ok(body) => held.push(body),
                Err(error) => break error,
            }
        };
        assert_eq!((refused, held.len()), (BodyError::Crowded, 4));
        assert!(reader.read(None, pieces(&[1000, 1000, 1000])).await.is_ok(), "small ones are free");
        held.clear();
        assert!(reader.read(None, pieces(&sizes)).await.is_ok());
    }

    #[tokio::test]
    async fn a_body_that_does_not_come_ends() {
        let reader = Reader::new(100, Duration::from_millis(10));
        let stuck = pieces(&[5]).chain(stream::pending());
        assert_eq!(reader.read(None, stuck).await.unwrap_err(), BodyError::TooSlow);
    }
}
