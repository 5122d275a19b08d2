//! `holdfast controller`.

use holdfast_proto::v1::{
    AddControllerRequest, ListControllersRequest, Member, RemoveControllerRequest, TransferLeadershipRequest,
    controller_service_client::ControllerServiceClient,
};

use crate::{
    arguments::{Client, Controller},
    connection::{Access, refusal, request_id},
    output::{print, table},
};

pub(crate) async fn run(client: &Client, verb: Controller) -> anyhow::Result<()> {
    // A new controller catches up before its call is answered, which takes as long as it takes.
    let mut service = ControllerServiceClient::new(Access::find(client)?.connect_for_long().await?);
    let request_id = request_id();
    let answer = match verb {
        Controller::List => service.list_controllers(ListControllersRequest {}).await,
        Controller::Add { name, id, address } => {
            service.add_controller(AddControllerRequest { request_id, name, id, address }).await
        }
        Controller::Remove { name } => {
            service.remove_controller(RemoveControllerRequest { request_id, name }).await
        }
        Controller::Transfer { name } => {
            service.transfer_leadership(TransferLeadershipRequest { request_id, name }).await
        }
    };
    let answer = answer.map_err(refusal)?.into_inner();
    print(client.output, "ListControllersResponse", &answer, || rows(&answer.members))
}

pub(super) fn rows(members: &[Member]) -> String {
    table(
        ["controller", "id", "address", "role", "state", "matched"],
        members.iter().map(|member| {
            let role = match (member.leader, member.voter) {
                (true, _) => "leader",
                (false, true) => "voter",
                (false, false) => "learner",
            };
            [
                member.name.clone(),
                member.id.to_string(),
                member.address.clone(),
                role.to_owned(),
                if member.live { "answers" } else { "silent" }.to_owned(),
                member.matched_index.map_or_else(|| "-".to_owned(), |index| index.to_string()),
            ]
        }),
    )
}
