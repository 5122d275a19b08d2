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
        Pki::Renew { ca, tls } => {
            let own = Authority::open(&ca)?.renew(&tls)?;
            println!("{} {}: new certificate and key in {}", own.role, own.name, tls.display());
        }
        Pki::Trust { ca, tls } => {
            let own = Authority::open(&ca)?.hand_trust(&tls)?;
            println!("{} {}: ca.pem in {} is that of the authority", own.role, own.name, tls.display());
        }
        Pki::RollOver { ca } => {
            Authority::open(&ca)?.roll_over()?;
            println!(
                "a new authority issues from now on; hand its ca.pem to every identity ('holdfast pki trust'), then renew each"
            );
        }
        Pki::EndRollOver { ca } => {
            Authority::open(&ca)?.end_roll_over()?;
            println!("the old authority is gone; hand ca.pem to every identity ('holdfast pki trust')");
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
