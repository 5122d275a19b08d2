// SPDX-License-Identifier: GPL-2.0-only
/*
 * I_T nexuses: who a command comes from, in the cluster's words, and the Unit Attentions that wait for it.
 *
 * A nexus is named by the initiator port's TransportID and the cluster's relative target port, never by LIO's session: a session
 * comes and goes, and its memory is used again. The relative port comes from the data node (HFK_PORT), because LIO's own number is
 * the node's at best.
 *
 * Invariants: an entry is used only for a session that bears the very names it was made of; entries live as long as their unit.
 */
#include <linux/jhash.h>
#include <linux/slab.h>
#include <scsi/scsi_proto.h>

#include "hf.h"

struct hf_port {
	struct list_head list;
	char fabric[16];
	char wwn[TRANSPORT_IQN_LEN];
	u16 tag;
	u16 relative_port;
};

#define HF_PORTS_MAX 256

static LIST_HEAD(hf_ports);
static unsigned int hf_port_count;
static DEFINE_SPINLOCK(hf_ports_lock);

int hf_port_set(const struct hfk_port *told)
{
	struct hf_port *port, *new;
	int rc = 0;

	if (strnlen(told->fabric, sizeof(told->fabric)) == sizeof(told->fabric) ||
	    strnlen(told->wwn, sizeof(told->wwn)) == sizeof(told->wwn) || !told->relative_port)
		return -EINVAL;
	new = kzalloc(sizeof(*new), GFP_KERNEL);
	if (!new)
		return -ENOMEM;
	strscpy(new->fabric, told->fabric, sizeof(new->fabric));
	strscpy(new->wwn, told->wwn, sizeof(new->wwn));
	new->tag = told->tag;
	new->relative_port = told->relative_port;
	spin_lock_bh(&hf_ports_lock);
	list_for_each_entry(port, &hf_ports, list) {
		if (port->tag == new->tag && !strcmp(port->wwn, new->wwn) && !strcmp(port->fabric, new->fabric)) {
			/* A relative port is given once and for all. */
			rc = port->relative_port == new->relative_port ? 1 : -EEXIST;
			break;
		}
	}
	if (!rc && hf_port_count >= HF_PORTS_MAX)
		rc = -ENOSPC;
	if (!rc) {
		hf_port_count++;
		list_add_tail(&new->list, &hf_ports);
		new = NULL;
	}
	spin_unlock_bh(&hf_ports_lock);
	kfree(new);
	return rc < 0 ? rc : 0;
}

void hf_ports_free(void)
{
	struct hf_port *port, *next;

	list_for_each_entry_safe(port, next, &hf_ports, list)
		kfree(port);
	INIT_LIST_HEAD(&hf_ports);
	hf_port_count = 0;
}

static u16 hf_relative_port(struct se_portal_group *tpg)
{
	const struct target_core_fabric_ops *ops = tpg->se_tpg_tfo;
	const char *wwn = ops->tpg_get_wwn(tpg);
	u16 tag = ops->tpg_get_tag(tpg), found = 0;
	struct hf_port *port;

	spin_lock_bh(&hf_ports_lock);
	list_for_each_entry(port, &hf_ports, list) {
		if (port->tag == tag && !strcmp(port->wwn, wwn) && !strcmp(port->fabric, ops->fabric_name)) {
			found = port->relative_port;
			break;
		}
	}
	spin_unlock_bh(&hf_ports_lock);
	return found;
}

/* Hexadecimal digits, whatever stands between them ("naa.", "0x", ":"), to exactly `len` bytes. */
static bool hf_hex_name(const char *name, u8 *out, size_t len)
{
	size_t digits = 0;

	if (!strncmp(name, "naa.", 4))
		name += 4;
	else if (!strncmp(name, "0x", 2))
		name += 2;
	for (; *name; name++) {
		int value = hex_to_bin(*name);

		if (*name == ':')
			continue;
		if (value < 0 || digits == 2 * len)
			return false;
		out[digits / 2] = digits % 2 ? out[digits / 2] | value : value << 4;
		digits++;
	}
	return digits == 2 * len;
}

static bool hf_core_nexus_of(struct hf_core_nexus *core, u32 protocol, const char *name, const char *isid,
			     u16 relative_port)
{
	u8 id[16], isid_bytes[6] = { };

	switch (protocol) {
	case SCSI_PROTOCOL_FCP:
	case SCSI_PROTOCOL_SAS:
		return hf_hex_name(name, id, 8) && !hf_core_nexus(core, protocol, id, 8, NULL, relative_port);
	case SCSI_PROTOCOL_SRP:
		return hf_hex_name(name, id, 16) && !hf_core_nexus(core, protocol, id, 16, NULL, relative_port);
	case SCSI_PROTOCOL_ISCSI:
		if (isid[0] && !hf_hex_name(isid, isid_bytes, 6))
			return false;
		return !hf_core_nexus(core, protocol, name, strlen(name), isid_bytes, relative_port);
	}
	return false;
}

static void hf_nexus_free(struct hf_nexus *nexus)
{
	kfree(nexus->attentions);
	kfree(nexus->core);
	kfree(nexus);
}

static struct hf_nexus *hf_nexus_new(struct se_cmd *cmd, const char *isid)
{
	struct se_portal_group *tpg = cmd->se_sess->se_tpg;
	const char *name = cmd->se_sess->se_node_acl->initiatorname;
	struct hf_nexus *nexus = kzalloc(sizeof(*nexus), GFP_ATOMIC);
	u16 relative_port = hf_relative_port(tpg);

	if (!nexus || !relative_port)
		goto none;
	nexus->attentions = kzalloc(hf_core_ua_size(), GFP_ATOMIC);
	nexus->core = kzalloc(hf_core_nexus_size(), GFP_ATOMIC);
	if (!nexus->attentions || !nexus->core)
		goto none;
	if (strscpy(nexus->name, name, sizeof(nexus->name)) < 0)
		goto none;
	strscpy(nexus->isid, isid, sizeof(nexus->isid));
	if (!hf_core_nexus_of(nexus->core, tpg->proto_id, name, isid, relative_port)) {
		pr_warn_ratelimited("holdfast: %s is no name of a SCSI initiator port (protocol %d)\n", name,
				    tpg->proto_id);
		goto none;
	}
	hf_core_ua_init(nexus->attentions);
	/* A nexus that the unit has not seen: SAM's power-on condition. */
	hf_core_ua_raise(nexus->attentions, 1, 0x2900);
	spin_lock_init(&nexus->lock);
	nexus->tpg = tpg;
	nexus->relative_port = relative_port;
	return nexus;
none:
	if (nexus)
		hf_nexus_free(nexus);
	return NULL;
}

/* The nexus of a command; NULL while its port is not known to the cluster, or without memory: answer BUSY. */
struct hf_nexus *hf_nexus_of(struct hf_lu *lu, struct se_cmd *cmd)
{
	struct se_session *session = cmd->se_sess;
	const char *name = session->se_node_acl->initiatorname;
	struct hf_nexus *nexus, *new;
	unsigned long flags;
	char isid[20] = "";
	u32 key;

	if (session->se_tpg->se_tpg_tfo->sess_get_initiator_sid)
		session->se_tpg->se_tpg_tfo->sess_get_initiator_sid(session, isid, sizeof(isid));
	key = jhash(name, strlen(name), jhash(isid, strlen(isid), (u32)(uintptr_t)session->se_tpg));

	rcu_read_lock();
	hash_for_each_possible_rcu(lu->nexuses, nexus, node, key) {
		if (nexus->tpg == session->se_tpg && !strcmp(nexus->name, name) && !strcmp(nexus->isid, isid)) {
			rcu_read_unlock();
			return nexus;
		}
	}
	rcu_read_unlock();

	new = hf_nexus_new(cmd, isid);
	if (!new)
		return NULL;
	spin_lock_irqsave(&lu->nexus_lock, flags);
	hash_for_each_possible(lu->nexuses, nexus, node, key) {
		if (nexus->tpg == session->se_tpg && !strcmp(nexus->name, name) && !strcmp(nexus->isid, isid))
			goto found;
	}
	nexus = NULL;
	if (lu->nexus_count < HF_NEXUSES_MAX) {
		lu->nexus_count++;
		hash_add_rcu(lu->nexuses, &new->node, key);
		nexus = new;
		new = NULL;
	}
found:
	spin_unlock_irqrestore(&lu->nexus_lock, flags);
	if (new)
		hf_nexus_free(new);
	return nexus;
}

u16 hf_nexus_relative_port(const struct hf_nexus *nexus)
{
	return nexus->relative_port;
}

/* How it stands to the image's reservation: found once for each image. */
u32 hf_nexus_relation(struct hf_nexus *nexus, const struct hf_image *image)
{
	lockdep_assert_held(&nexus->lock);
	if (nexus->relation_serial != image->serial) {
		nexus->relation = hf_core_relation(image->memory, image->facts.registrants, nexus->core);
		nexus->relation_serial = image->serial;
	}
	return nexus->relation;
}

int hf_nexus_raise(struct hf_lu *lu, const struct hfk_attention *told, const u8 *transport_id, size_t len)
{
	struct hf_core_nexus *named = NULL;
	struct hf_nexus *nexus;
	unsigned long flags;
	int bucket;

	if (told->scope > HFK_NEXUS_EXCEPT || !told->event)
		return -EINVAL;
	if (told->scope != HFK_NEXUS_ALL) {
		named = kzalloc(hf_core_nexus_size(), GFP_KERNEL);
		if (!named)
			return -ENOMEM;
		if (hf_core_nexus_parse(named, transport_id, len, told->relative_port)) {
			kfree(named);
			return -EBADMSG;
		}
	}
	spin_lock_irqsave(&lu->nexus_lock, flags);
	hash_for_each(lu->nexuses, bucket, nexus, node) {
		if (named && !!hf_core_nexus_same(named, nexus->core) != (told->scope == HFK_NEXUS_ONLY))
			continue;
		spin_lock(&nexus->lock);
		hf_core_ua_raise(nexus->attentions, told->event, told->additional);
		spin_unlock(&nexus->lock);
	}
	spin_unlock_irqrestore(&lu->nexus_lock, flags);
	kfree(named);
	return 0;
}

void hf_nexus_free_all(struct hf_lu *lu)
{
	struct hf_nexus *nexus;
	struct hlist_node *next;
	int bucket;

	hash_for_each_safe(lu->nexuses, bucket, next, nexus, node) {
		hash_del(&nexus->node);
		hf_nexus_free(nexus);
	}
}
