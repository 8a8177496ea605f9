//! Settings: typed values that change how Kring behaves, at run time.
//!
//! A change is written down and announced; every controller, this one too, then reads all settings
//! again, one reading after the other, so that the last one sees the last change.

mod load;
mod service;

pub use load::load;

use std::sync::Arc;

use crate::bus::Registry;
use crate::messages::setting::SettingChanged;
use crate::services::Context;

/// Adds the handlers.
pub fn register(context: &Context, registry: &mut Registry) {
    context.serve(registry, service::list);
    context.serve(registry, service::get);
    context.serve(registry, service::update);
    let deps = Arc::clone(&context.deps);
    registry.subscribe(move |event: SettingChanged| {
        let deps = Arc::clone(&deps);
        async move {
            if let Err(error) = load(&deps).await {
                tracing::error!(setting.key = event.key, error = error.chain(), "the settings could not be read again");
            }
        }
    });
}

#[cfg(test)]
mod tests;
