//! The network filters that cards refer to: defined when they are missing, removed when Kring leaves.

use virt::connect::Connect;
use virt::error::ErrorNumber;
use virt::nwfilter::NWFilter;

use super::Error;
use super::calls::failed;
use super::xml::filter;

fn lookup(connect: &Connect, name: &str) -> Result<Option<NWFilter>, Error> {
    match connect.lookup_nwfilter_by_name(name) {
        Ok(filter) => Ok(Some(filter)),
        Err(error) if error.code().is(ErrorNumber::NoNwfilter) => Ok(None),
        Err(error) => Err(failed("look the network filter up", &error)),
    }
}

/// Defines the filter of a guest's card when it is missing, and what it is made of.
pub fn ensure(connect: &Connect) -> Result<(), Error> {
    if lookup(connect, filter::GUEST)?.is_some() {
        return Ok(());
    }
    if lookup(connect, filter::CLEAN_TRAFFIC)?.is_none() {
        for (name, xml) in filter::clean_traffic() {
            tracing::info!(filter = name, "defines a network filter that libvirt came without");
            define(connect, &xml)?;
        }
    }
    define(connect, &filter::guest())
}

fn define(connect: &Connect, xml: &str) -> Result<(), Error> {
    match connect.define_nwfilter_xml(xml) {
        Ok(_) => Ok(()),
        // Another VM's call came first.
        Err(error) if error.message().contains("already exists") => Ok(()),
        Err(error) => Err(failed("define the network filter", &error)),
    }
}

/// Removes what [`ensure`] has defined. One that somebody uses stays, and so does libvirt's own.
pub fn remove(connect: &Connect) -> Result<(), Error> {
    let mut names = vec![filter::GUEST];
    if let Some(clean) = lookup(connect, filter::CLEAN_TRAFFIC)? {
        let xml = clean.xml_desc(0).map_err(|e| failed("read the network filter", &e))?;
        if filter::is_ours(&xml) {
            names.extend(filter::clean_traffic().into_iter().rev().map(|(name, _)| name));
        }
    }
    for name in names {
        let Some(found) = lookup(connect, name)? else { continue };
        if let Err(error) = found.undefine() {
            tracing::info!(filter = name, %error, "a network filter stays");
        }
    }
    Ok(())
}
