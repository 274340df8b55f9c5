//! What this door needs of [`Control`], as a trait, so that the tests can put a recorder in its place.

use std::sync::Arc;

use async_trait::async_trait;
use futures_util::stream::BoxStream;

use crate::{
    control::{
        ApprovalRequest, BackupRequest, BackupUpdate, Control, DeployRequest, EnvironmentStatus, Health, RerunRequest,
        ResolveRequest, Result, RollbackRequest, Update,
    },
    model::DeploymentId,
    registry::{Delivery, Outcome, Receipt},
};

/// The methods of [`Control`] with the same names; what they promise is written there.
#[async_trait]
pub trait Verbs: Send + Sync + 'static {
    async fn receive(&self, delivery: Delivery) -> Result<Receipt>;
    async fn outcome(&self, receipt: Receipt) -> Result<Vec<Outcome>>;
    async fn deploy(&self, request: DeployRequest) -> Result<DeploymentId>;
    async fn rerun(&self, request: RerunRequest) -> Result<DeploymentId>;
    async fn rollback(&self, request: RollbackRequest) -> Result<DeploymentId>;
    async fn cancel(&self, id: DeploymentId, by: &str) -> Result<()>;
    async fn decide(&self, id: DeploymentId, request: ApprovalRequest) -> Result<()>;
    async fn resolve(&self, id: DeploymentId, request: ResolveRequest) -> Result<()>;
    fn backup(&self, request: BackupRequest) -> BoxStream<'static, Result<BackupUpdate>>;
    fn follow(&self, id: DeploymentId, after: i64) -> BoxStream<'static, Result<Update>>;
    async fn health(&self) -> Health;
    async fn status(&self) -> Result<Vec<EnvironmentStatus>>;
}

/// What every connection holds.
pub type SharedVerbs = Arc<dyn Verbs>;

#[async_trait]
impl Verbs for Control {
    async fn receive(&self, delivery: Delivery) -> Result<Receipt> {
        Self::receive(self, delivery).await
    }

    async fn outcome(&self, receipt: Receipt) -> Result<Vec<Outcome>> {
        Self::outcome(self, receipt).await
    }

    async fn deploy(&self, request: DeployRequest) -> Result<DeploymentId> {
        Self::deploy(self, request).await
    }

    async fn rerun(&self, request: RerunRequest) -> Result<DeploymentId> {
        Self::rerun(self, request).await
    }

    async fn rollback(&self, request: RollbackRequest) -> Result<DeploymentId> {
        Self::rollback(self, request).await
    }

    async fn cancel(&self, id: DeploymentId, by: &str) -> Result<()> {
        Self::cancel(self, id, by).await
    }

    async fn decide(&self, id: DeploymentId, request: ApprovalRequest) -> Result<()> {
        Self::decide(self, id, request).await
    }

    async fn resolve(&self, id: DeploymentId, request: ResolveRequest) -> Result<()> {
        Self::resolve(self, id, request).await
    }

    fn backup(&self, request: BackupRequest) -> BoxStream<'static, Result<BackupUpdate>> {
        Self::backup(self, request)
    }

    fn follow(&self, id: DeploymentId, after: i64) -> BoxStream<'static, Result<Update>> {
        Self::follow(self, id, after)
    }

    async fn health(&self) -> Health {
        Self::health(self).await
    }

    async fn status(&self) -> Result<Vec<EnvironmentStatus>> {
        Self::status(self).await
    }
}
