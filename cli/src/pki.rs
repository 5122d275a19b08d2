//! `holdfast pki`: the authority of a cluster and the certificates of its members.

use holdfast_pki::{Authority, Identity};

use crate::{arguments::Pki, output::facts};

pub(crate) fn run(verb: Pki) -> anyhow::Result<()> {
    match verb {
        Pki::Init { ca } => {
            let authority = Authority::create(&ca)?;
            println!("cluster {}: authority in {}", authority.cluster(), ca.display());
        }
        Pki::Issue { ca, role, name, out } => {
            Authority::open(&ca)?.issue((role, &name), &out)?;
            println!("{role} {name}: certificate and key in {}", out.display());
        }
        Pki::Show { tls } => {
            let identity = Identity::load(&tls)?;
            let own = identity.own();
            print!(
                "{}",
                facts([
                    ("cluster", own.cluster.to_string()),
                    ("role", own.role.to_string()),
                    ("name", own.name.clone())
                ])
            );
        }
    }
    Ok(())
}
