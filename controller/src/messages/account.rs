//! Messages of the account service.

use serde::{Deserialize, Serialize};
use shared::api::account::{Account, AccountKind, CreateAccount as Body, CreateToken as TokenBody, NewToken, Token};
use shared::id::{AccountId, TokenId};

use super::{changes, creates, reads};
use crate::bus::request;

reads!("account", "account.GetAccount" => GetAccount(AccountId), "account.ListAccounts" => ListAccounts, Account, Operate);
creates!("account.CreateAccount" to "account" => Account, CreateAccount(AccountId, Body), Operate);
changes!(
    /// Removes an account that owns nothing, with its tokens.
    "account.DeleteAccount" to "account" => (), DeleteAccount(AccountId), Operate
);
creates!("account.CreateToken" to "account" => NewToken, CreateToken(TokenId, TokenBody), Create);
reads!("account", "account.GetToken" => GetToken(TokenId), "account.ListTokens" => ListTokens, Token, Read);
changes!(
    /// Makes a token stop working, at once.
    "account.RevokeToken" to "account" => (), RevokeToken(TokenId), Write
);

/// Asks whose token it is. `unauthenticated` when it is unknown or expired.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Authenticate {
    /// Hexadecimal SHA-256 of the secret; the secret itself never travels.
    pub secret_sha256: String,
}
request!("account.Authenticate" to "account" => Identity, Authenticate);

/// Whom a token acts for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Identity {
    /// The account.
    pub account_id: AccountId,
    /// What it may do.
    pub kind: AccountKind,
    /// When the token stops working, in milliseconds since the epoch.
    pub expires_at: Option<i64>,
}
