//! The settings of the outermost guard, which sheds load.

use super::{Shed, Stack};
use palisade_core::{Guard, Mode, RequestHead, RuntimeLoad};
use palisade_load_shed::LoadShedLayer;
use std::sync::Arc;

impl Stack {
    /// Sets the load of the runtime by which a share of the requests is refused: see
    /// [`LoadShedLayer::runtime_load`]. `None` removes it. Defaults to the load of the runtime in
    /// which the stack is built, and outside of a runtime to none: see
    /// [`RuntimeLoad::of_current_runtime`].
    ///
    /// Behind `palisade::serve`, or request tracking of another connection guard, the guard has
    /// asked already, by the load of its own.
    ///
    /// ```
    /// use palisade::{RuntimeLoad, Stack};
    /// # use palisade_testkit::example::*;
    /// # #[tokio::main(flavor = "current_thread", start_paused = true)]
    /// # async fn main() -> Result<(), BoxError> {
    /// let load = RuntimeLoad::reported(); // `RuntimeLoad::default()` measures.
    /// let stack = Stack::edge().runtime_load(load.clone()).build()?;
    /// let get = || Request::new(Empty::<Bytes>::new());
    /// assert_eq!(status(&stack, get()).await, 200);
    /// (0..12).for_each(|_| load.report(Duration::from_secs(2)));
    /// assert_eq!(status(&stack, get()).await, 503);
    /// # Ok(())
    /// # }
    /// ```
    pub fn runtime_load(mut self, load: impl Into<Option<RuntimeLoad>>) -> Self {
        self.shed.runtime_load = Some(load.into());
        self
    }

    /// Sets the requests that are never refused for memory or the load of the runtime, such as
    /// health checks: see [`LoadShedLayer::critical`]. The connection guard asks first and has a
    /// `critical` of its own: set both behind `palisade::serve`. The other guards of the stack hold
    /// for these requests too. Defaults to no requests.
    ///
    /// ```
    /// use palisade::Stack;
    /// # use palisade_testkit::example::*;
    /// # #[tokio::main(flavor = "current_thread", start_paused = true)]
    /// # async fn main() -> Result<(), BoxError> {
    /// let stack = Stack::edge().memory(growing_memory());
    /// let stack = stack.critical(|head| head.uri.path() == "/health").build()?;
    /// let get = |path| Request::get(path).body(Empty::<Bytes>::new());
    /// assert_eq!(status(&stack, get("/")?).await, 503);
    /// assert_eq!(status(&stack, get("/health")?).await, 200);
    /// # Ok(())
    /// # }
    /// ```
    pub fn critical(
        mut self,
        is_critical: impl Fn(&RequestHead<'_>) -> bool + Send + Sync + 'static,
    ) -> Self {
        self.shed.is_critical = Some(Arc::new(is_critical));
        self
    }

    /// Sets the requests that are refused first while memory grows or the runtime is overloaded,
    /// such as prefetches and exports: see [`LoadShedLayer::sheddable`]. The connection guard has a
    /// `sheddable` of its own. Defaults to no requests.
    ///
    /// ```
    /// use palisade::{Memory, Stack};
    /// # use palisade_testkit::example::*;
    /// # #[tokio::main(flavor = "current_thread", start_paused = true)]
    /// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// let memory = Memory::reported(1000)?;
    /// let stack = Stack::edge().memory(memory.clone());
    /// let stack = stack.sheddable(|head| head.uri.path() == "/export").build()?;
    /// for used in [900, 920, 940] {
    ///     memory.report(used); // It grows, and is below 95 %.
    /// }
    /// let get = |path| Request::get(path).body(Empty::<Bytes>::new());
    /// assert_eq!(status(&stack, get("/export")?).await, 503);
    /// assert_eq!(status(&stack, get("/")?).await, 200);
    /// # Ok(())
    /// # }
    /// ```
    pub fn sheddable(
        mut self,
        is_sheddable: impl Fn(&RequestHead<'_>) -> bool + Send + Sync + 'static,
    ) -> Self {
        self.shed.is_sheddable = Some(Arc::new(is_sheddable));
        self
    }

    /// Changes any option of the layer that sheds load, after all settings of the stack are
    /// applied. The changes are not validated. Defaults to no change.
    ///
    /// ```
    /// use palisade::Stack;
    /// # use palisade_testkit::example::*;
    /// # #[tokio::main(flavor = "current_thread", start_paused = true)]
    /// # async fn main() -> Result<(), BoxError> {
    /// let stack = Stack::edge().memory(growing_memory());
    /// // Bodies still have to be faster.
    /// let stack = stack.tune_load_shed(|layer| layer.memory(None)).build()?;
    /// assert_eq!(status(&stack, Request::new(Empty::<Bytes>::new())).await, 200);
    /// assert_eq!(status(&stack, upload(60, 1_000, SECOND)).await, 408);
    /// # Ok(())
    /// # }
    /// ```
    pub fn tune_load_shed(
        mut self,
        tune: impl FnOnce(LoadShedLayer) -> LoadShedLayer + Send + 'static,
    ) -> Self {
        self.tunes.load_shed = Some(Box::new(tune));
        self
    }

    pub(super) fn load_shed_layer(&self) -> LoadShedLayer {
        let Shed {
            runtime_load,
            is_critical,
            is_sheddable,
        } = &self.shed;
        let is_off = self.mode_for(Guard::LoadShed) == Mode::Off;
        let load = match runtime_load {
            Some(load) => load.clone(),
            None if is_off => None,
            None => RuntimeLoad::of_current_runtime(),
        };
        let mut layer = LoadShedLayer::with_sources(self.memory.clone(), load);
        if let Some(is_critical) = is_critical.clone() {
            layer = layer.critical(move |head| is_critical(head));
        }
        if let Some(is_sheddable) = is_sheddable.clone() {
            layer = layer.sheddable(move |head| is_sheddable(head));
        }
        layer
    }
}
