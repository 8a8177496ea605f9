//! Flow `vm.recover`: one step, in the transaction that accepts it. The VM is back, stopped; its
//! domain is defined again when it starts.

use std::sync::Arc;

use async_trait::async_trait;
use shared::api::vm::VmState;
use shared::id::ResourceId;
use uuid::Uuid;

use super::transition::State;
use crate::db::{self, Tx};
use crate::workflow::{At, Flow, Step};

/// Brings a deleted VM back.
pub(super) struct Recover;

impl Flow for Recover {
    const KIND: &'static str = "vm.recover";
    const NOUN: &'static str = "vm";
    type State = State;

    fn resource(state: &State) -> Uuid {
        state.id.uuid()
    }

    fn steps(_: &State) -> Vec<Arc<dyn Step<State>>> {
        vec![Arc::new(Undelete)]
    }
}

struct Undelete;

#[async_trait]
impl Step<State> for Undelete {
    fn name(&self) -> &'static str {
        "recover"
    }

    async fn record(&self, tx: &mut Tx, at: &At, state: &mut State) -> db::Result<()> {
        let before = db::vm::change(tx, state.id, &[VmState::Deleted], VmState::Stopped, at.generation, at.now).await?;
        if before.vm.state == VmState::Deleted {
            state.was = Some(VmState::Deleted);
        }
        // Refused when another VM has taken the name meanwhile.
        db::vm::set_deleted_at(tx, state.id, &before.vm.name, None).await
    }

    async fn unrecord(&self, tx: &mut Tx, at: &At, state: &State) -> db::Result<()> {
        let Some(row) = db::vm::get(tx.conn(), state.id).await? else { return Ok(()) };
        if state.was == Some(VmState::Deleted) && row.vm.state == VmState::Stopped {
            db::vm::restore_deleted(tx, state.id, at.now).await?;
        }
        Ok(())
    }
}
