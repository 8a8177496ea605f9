//! What a command is run with.

use std::sync::Arc;

use crate::cli::{Format, Global};
use crate::client::Client;
use crate::config::{self, Env};
use crate::error::Result;

/// The connection and the wishes of the user.
pub struct Ctx {
    /// Talks to the controller.
    pub client: Arc<Client>,
    /// How results are written.
    pub format: Format,
    /// The context of the configuration that is used.
    pub context: Option<String>,
}

impl Ctx {
    /// Finds out which controller is meant. Nothing is sent.
    pub fn new(global: &Global) -> Result<Self> {
        let target = config::target(&global.connection, &Env::read())?;
        let client = Arc::new(Client::new(&target, global.verbose)?);
        Ok(Self { client, format: global.output, context: target.context })
    }

    /// Whether a person reads the results.
    pub fn for_people(&self) -> bool {
        self.format == Format::Table
    }
}
