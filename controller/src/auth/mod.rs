//! Who may do what: actions, and the one point where a request is allowed or refused.

pub mod ca;
mod kx;
mod sessions;
pub mod tls;
pub mod token;

use serde::{Deserialize, Serialize};
use shared::id::AccountId;
use shared::{Code, Error};

use crate::cx::Caller;

/// What a request does, for authorisation.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Action {
    /// Looks at a resource of an account.
    Read,
    /// Makes a resource for the caller's account.
    Create,
    /// Changes or removes a resource of an account.
    Write,
    /// Looks at the infrastructure (hosts, clusters, storages, services): everybody with a token.
    ReadInfrastructure,
    /// Changes the infrastructure, accounts or settings: admins.
    Operate,
}

/// Allows or refuses `action` on a resource that belongs to `owner` (`None` for a create or a list,
/// or for infrastructure). What a caller may not know of is `not_found`, so existence is not betrayed.
pub fn authorise(
    caller: &Caller,
    action: Action,
    subject: Option<(&'static str, uuid::Uuid)>,
    owner: Option<AccountId>,
) -> Result<(), Error> {
    if caller.is_admin() {
        return Ok(());
    }
    match action {
        Action::Create | Action::ReadInfrastructure => Ok(()),
        Action::Operate => Err(Error::new(Code::Forbidden, "only an admin account may do this")),
        Action::Read | Action::Write => match (subject, owner) {
            (None, _) => Ok(()),
            (Some(_), Some(owner)) if caller.account() == Some(owner) => Ok(()),
            (Some((noun, id)), _) => Err(Error::not_found(noun, id)),
        },
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use uuid::Uuid;

    #[test]
    fn a_stranger_cannot_tell_a_foreign_resource_from_none() {
        let (mine, theirs) = (AccountId::new(), AccountId::new());
        let caller = Caller::Account { id: mine, admin: false };
        let id = Uuid::now_v7();
        for action in [Action::Read, Action::Write] {
            assert_eq!(authorise(&caller, action, Some(("vm", id)), Some(mine)), Ok(()));
            let foreign = authorise(&caller, action, Some(("vm", id)), Some(theirs)).unwrap_err();
            let missing = authorise(&caller, action, Some(("vm", id)), None).unwrap_err();
            assert_eq!(foreign, missing);
            assert_eq!(foreign.code, Code::NotFound);
        }
        assert_eq!(authorise(&caller, Action::Operate, None, None).unwrap_err().code, Code::Forbidden);
    }
}
