//! A service through which proxies that take each other's place agree on losses. It answers late,
//! and no node can reach it.

use std::collections::BTreeMap;
use std::future::pending;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use futures::future::{BoxFuture, FutureExt};
use rand::rngs::SmallRng;
use rand::{RngExt, SeedableRng};
use tokio::sync::oneshot;
use tokio::time::sleep;

use crate::cluster::{Losses, Lost};
use crate::ids::{Epoch, PairId};

use super::trace::note;

/// The service.
pub(super) struct Agreed {
    of: BTreeMap<PairId, (Epoch, Lost)>,
    /// The proxy that alone may change it.
    active: u32,
    /// It takes so many milliseconds at most.
    most_ms: u64,
    rng: SmallRng,
}

impl Agreed {
    pub(super) fn new(rng: &mut SmallRng) -> Arc<Mutex<Agreed>> {
        let most_ms = [1, 10, 100, 500][rng.random_range(0..4)];
        let rng = SmallRng::seed_from_u64(rng.random());
        Arc::new(Mutex::new(Agreed { of: BTreeMap::new(), active: 0, most_ms, rng }))
    }
}

/// A proxy's way to it.
pub(super) struct SimLosses {
    agreed: Arc<Mutex<Agreed>>,
    proxy: u32,
}

impl SimLosses {
    /// This proxy is active from now on, and no earlier one.
    pub(super) fn of(agreed: &Arc<Mutex<Agreed>>, proxy: u32) -> SimLosses {
        let losses = SimLosses { agreed: agreed.clone(), proxy };
        lock(agreed).active = proxy;
        losses
    }
}

fn lock(agreed: &Mutex<Agreed>) -> MutexGuard<'_, Agreed> {
    agreed.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Losses for SimLosses {
    fn listed(&self) -> Vec<(PairId, Lost, Epoch)> {
        lock(&self.agreed).of.iter().map(|(pair, (epoch, lost))| (*pair, *lost, *epoch)).collect()
    }

    fn commit(&self, pair: PairId, epoch: Epoch, lost: Lost) -> BoxFuture<'static, ()> {
        let (agreed, proxy) = (self.agreed.clone(), self.proxy);
        let ms = {
            let agreed = &mut *lock(&agreed);
            agreed.rng.random_range(0..=agreed.most_ms)
        };
        let (told, is_in) = oneshot::channel();
        tokio::spawn(async move {
            sleep(Duration::from_millis(ms)).await;
            let mut agreed = lock(&agreed);
            if agreed.active == proxy {
                note(|| format!("agreed pair {} at {}: lost {lost:?}", pair.0, epoch.0));
                let now = agreed.of.entry(pair).or_default();
                *now = (*now).max((epoch, lost));
                let _ = told.send(());
            }
        });
        async move {
            if is_in.await.is_err() {
                pending::<()>().await;
            }
        }
        .boxed()
    }
}
