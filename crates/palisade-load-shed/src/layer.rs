//! The layer and its options.

use crate::policy::LoadShedPolicy;
use palisade_core::{Memory, RequestHead, RuntimeLoad};
use palisade_guard::{GuardLayer, Guarded};
use std::sync::Arc;
use tower_layer::Layer;

/// Applies [`LoadShed`]. All clones, and the services they create, share one state.
#[derive(Clone, Debug)]
#[must_use = "a layer does nothing until it wraps a service"]
pub struct LoadShedLayer {
    guard: GuardLayer<LoadShedPolicy>,
}

/// Refuses requests outside of the share. See the [crate docs](crate).
pub type LoadShed<S> = Guarded<S, LoadShedPolicy>;

/// The request body that the inner service reads.
pub type RequestBody<B> = palisade_guard::RequestBody<B, LoadShedPolicy>;

/// The response body of the inner service.
pub type ResponseBody<B> = palisade_guard::ResponseBody<B, LoadShedPolicy>;

/// Response future of [`LoadShed`].
pub type ResponseFuture<S, B> = palisade_guard::ResponseFuture<S, B, LoadShedPolicy>;

// === LoadShedLayer ===

impl LoadShedLayer {
    /// Creates a layer that asks [`Memory::of_process`] and
    /// [`RuntimeLoad::of_current_runtime`]: the runtime in which this is called. Outside of a
    /// runtime, as in a `static`, no load is asked, unless [`runtime_load`](Self::runtime_load)
    /// gives one.
    ///
    /// ```
    /// use palisade_load_shed::LoadShedLayer;
    /// # use palisade_testkit::example::*;
    /// # #[tokio::main(flavor = "current_thread", start_paused = true)]
    /// # async fn main() -> Result<(), BoxError> {
    /// // The machine is at rest.
    /// let request = Request::new(Empty::<Bytes>::new());
    /// assert_eq!(status(&LoadShedLayer::new(), request).await, 200);
    /// # Ok(())
    /// # }
    /// ```
    pub fn new() -> Self {
        let load = RuntimeLoad::of_current_runtime();
        Self::with_sources(Some(Memory::of_process()), load)
    }

    #[doc(hidden)]
    pub fn with_sources(memory: Option<Memory>, load: Option<RuntimeLoad>) -> Self {
        Self {
            guard: GuardLayer::new(LoadShedPolicy::new(memory, load)),
        }
    }

    /// Sets the memory whose growth refuses requests. `None` removes it. Defaults to
    /// [`Memory::of_process`].
    ///
    /// ```
    /// use palisade_load_shed::{LoadShedLayer, Memory};
    /// # use palisade_testkit::example::*;
    /// # #[tokio::main(flavor = "current_thread", start_paused = true)]
    /// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// let memory = Memory::reported(1_000_000)?;
    /// let layer = LoadShedLayer::new().memory(memory.clone());
    /// memory.report(960_000);
    /// memory.report(990_000);
    /// let get = || Request::new(Empty::<Bytes>::new());
    /// assert_eq!(status(&layer, get()).await, 503);
    /// assert_eq!(status(&layer.memory(None), get()).await, 200);
    /// # Ok(())
    /// # }
    /// ```
    pub fn memory(mut self, memory: impl Into<Option<Memory>>) -> Self {
        self.policy_mut().set_memory(memory.into());
        self
    }

    /// Sets the load of the runtime that refuses requests. `None` removes it. Defaults to the load
    /// of the runtime in which the layer is created.
    ///
    /// A layer that is created outside of the runtime, or whose requests are served in several
    /// runtimes, needs one that watches them:
    ///
    /// ```
    /// use palisade_load_shed::{LoadShedLayer, RuntimeLoad};
    /// # use palisade_testkit::example::*;
    /// use tokio::runtime::{Builder, Handle};
    ///
    /// let load = RuntimeLoad::default();
    /// let layer = LoadShedLayer::new().runtime_load(load.clone());
    /// let runtime = Builder::new_current_thread().build()?;
    /// runtime.block_on(async {
    ///     load.watch(&Handle::current()); // Spawns a task that measures.
    ///     let request = Request::new(Empty::<Bytes>::new());
    ///     assert_eq!(status(&layer, request).await, 200);
    /// });
    /// # Ok::<_, std::io::Error>(())
    /// ```
    pub fn runtime_load(mut self, load: impl Into<Option<RuntimeLoad>>) -> Self {
        self.policy_mut().set_runtime(load.into());
        self
    }

    /// Sets the requests that are never refused, such as health checks. Match on something that a
    /// client cannot forge, or that costs nothing to answer. Behind request tracking of a
    /// connection guard, set it there too. Defaults to no requests.
    ///
    /// ```
    /// use palisade_load_shed::LoadShedLayer;
    /// # use palisade_testkit::example::*;
    /// # #[tokio::main(flavor = "current_thread", start_paused = true)]
    /// # async fn main() -> Result<(), BoxError> {
    /// let layer = LoadShedLayer::new()
    ///     .memory(growing_memory())
    ///     .critical(|head| head.uri.path() == "/health");
    /// let get = |path| Request::get(path).body(Empty::<Bytes>::new());
    /// assert_eq!(status(&layer, get("/")?).await, 503);
    /// assert_eq!(status(&layer, get("/health")?).await, 200);
    /// # Ok(())
    /// # }
    /// ```
    pub fn critical(
        mut self,
        is_critical: impl Fn(&RequestHead<'_>) -> bool + Send + Sync + 'static,
    ) -> Self {
        let shedding = &mut self.policy_mut().shedding;
        shedding.set_critical(Some(Arc::new(is_critical)));
        self
    }

    /// Sets the requests that are refused first, such as prefetches and exports: from 92 % of the
    /// memory on, and not from 95 %, and while the runtime is overloaded, all but the square of the
    /// share. One that is also [critical](Self::critical) is not refused. Defaults to no requests.
    ///
    /// ```
    /// use palisade_load_shed::{LoadShedLayer, Memory};
    /// # use palisade_testkit::example::*;
    /// # #[tokio::main(flavor = "current_thread", start_paused = true)]
    /// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// let memory = Memory::reported(1000)?;
    /// let layer = LoadShedLayer::new()
    ///     .memory(memory.clone())
    ///     .sheddable(|head| head.uri.path() == "/export");
    /// memory.report(900);
    /// memory.report(940);
    /// let get = |path| Request::get(path).body(Empty::<Bytes>::new());
    /// for (path, refused) in [("/", 0), ("/export", 8)] {
    ///     let mut statuses = Vec::new();
    ///     for _ in 0..16 {
    ///         statuses.push(status(&layer, get(path)?).await);
    ///     }
    ///     assert_eq!(statuses.iter().filter(|status| **status == 503).count(), refused);
    /// }
    /// # Ok(())
    /// # }
    /// ```
    pub fn sheddable(
        mut self,
        is_sheddable: impl Fn(&RequestHead<'_>) -> bool + Send + Sync + 'static,
    ) -> Self {
        let shedding = &mut self.policy_mut().shedding;
        shedding.set_sheddable(Some(Arc::new(is_sheddable)));
        self
    }

    /// Returns the policy of this layer, for a stack of several guards.
    #[doc(hidden)]
    pub fn policy(&self) -> &LoadShedPolicy {
        self.guard.policy()
    }

    fn policy_mut(&mut self) -> &mut LoadShedPolicy {
        self.guard.policy_mut()
    }
}

palisade_guard::settings_methods!(
    LoadShedLayer,
    gauges: gauges,
    records: shedding,
    example: "LoadShedLayer::new().memory(growing_memory())" => 503 "memory_pressure"
);

impl Default for LoadShedLayer {
    fn default() -> Self {
        Self::new()
    }
}

impl<S> Layer<S> for LoadShedLayer {
    type Service = LoadShed<S>;

    fn layer(&self, inner: S) -> LoadShed<S> {
        self.guard.layer(inner)
    }
}
